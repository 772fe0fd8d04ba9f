"""What is wrong with images and labels: looked for, listed and shown. Nothing is changed."""
