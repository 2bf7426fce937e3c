"""What a slate is worth: metrics, intervals, the judge and its report."""
