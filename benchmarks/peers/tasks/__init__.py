"""What is trained: data, initial values and the loss that all are judged by, in NumPy alone."""
