"""Pure tensor functions: the algorithms, readable and testable on their own. Imports torch only."""
