"""Everything that speaks with Slurm: its commands, submission, ranks from its variables, requeues, states of jobs."""
