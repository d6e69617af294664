"""How the demo model was made: drawing, training, judging. Imported by nothing at run time."""
