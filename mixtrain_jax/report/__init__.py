"""What a person sees of a run: live rows, a final table, plots, a page."""
