"""Images, how they become inputs, and how a data set becomes a sequence of tasks."""
