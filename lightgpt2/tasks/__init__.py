"""What is predicted and how it is scored. A method works with any task."""
