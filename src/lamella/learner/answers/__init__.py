"""What a model of answers is worth: what answers cost it, what it writes, and which of given answers it would give."""
