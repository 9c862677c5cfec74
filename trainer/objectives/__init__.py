"""Training objectives: from a student and a batch to the losses of a step, with the equation of each loss term."""
