"""What each role's numbers are called: from counts that the roles keep to the instruments of the registry."""
