"""Label runs: stages of threads that decode, predict, select and write."""
