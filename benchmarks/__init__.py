"""What the workflow costs, against what people use today."""
