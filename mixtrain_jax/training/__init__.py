"""Training: one state, three small jitted steps, one loop."""
