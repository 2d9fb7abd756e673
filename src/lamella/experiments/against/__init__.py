"""Functions of the authors' own code on the same tensors as ours: what each method computes, compared."""
