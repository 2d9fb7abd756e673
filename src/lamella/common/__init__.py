"""What every room uses: draws by name, whole files, locks, checked options, words and numbers for people."""
