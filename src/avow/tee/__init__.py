"""One folder a platform: the report's wire format, the attesting and the verifying side."""
