"""What an operator writes: its model, loading it, errors that name the field, watching it for changes."""
