"""Words and topics of texts."""
