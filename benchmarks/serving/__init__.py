"""What serving costs, and what a changing batch is worth."""
