"""Model cards, publishing and what is known of a captioner."""
