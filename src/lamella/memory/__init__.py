"""What is kept of old tasks: subspaces, class Gaussians, signatures of inputs, exemplars."""
