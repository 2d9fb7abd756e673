"""What several methods share: heads, the growing classifier, distillation."""
