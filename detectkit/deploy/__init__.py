"""From a trained model to where it runs."""
