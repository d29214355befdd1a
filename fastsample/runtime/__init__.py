"""What carries a plan out: conditions, one batch in flight, and the loop over it."""
