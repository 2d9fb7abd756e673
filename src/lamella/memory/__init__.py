"""What methods store about old tasks: subspaces, class Gaussians, signatures of inputs, exemplars."""
