"""Commands that map classes, choose a selection and calibrate it."""
