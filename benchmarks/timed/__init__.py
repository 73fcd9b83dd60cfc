"""What `speed.py` times: networks, measures of ours and of peers, taking turns, cost curves, and the page."""
