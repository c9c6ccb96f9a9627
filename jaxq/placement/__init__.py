"""What is quantized, how, and for which target."""
