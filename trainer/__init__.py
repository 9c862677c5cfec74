"""Students from cached labels: datasets over label stores, recipes, losses and one training loop."""
