"""Helpers of all rooms: random draws by name, atomic files, locks, checked options, formatting of numbers."""
