"""What a recipe costs and hits in a model, before a weight is read: shapes and formulae alone."""
