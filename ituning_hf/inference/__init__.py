"""Load a captioner and caption images."""
