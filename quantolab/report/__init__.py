"""Records in; tables, figures and files out. Knows no model and never imports torch."""
