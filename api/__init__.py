"""What tallyflow offers over HTTP: today, taking events in."""
