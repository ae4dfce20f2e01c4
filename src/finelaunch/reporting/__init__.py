"""What a person reads: tables and model cards, pure functions of what a run wrote."""
