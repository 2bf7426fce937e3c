"""Items to semantic IDs and back; pure functions and one small artifact."""
