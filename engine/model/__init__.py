"""Models as data: bundles, input specifications, class mappings, gate verdicts, and the files they are stored in."""
