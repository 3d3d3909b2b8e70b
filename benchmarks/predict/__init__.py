"""What a GPU that is not at hand needs for a picture: a model of its time, and its error where figures are public."""
