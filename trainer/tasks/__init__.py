"""What a recipe can ask for, one module a task."""
