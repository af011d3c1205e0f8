"""What several op files share; not an operator."""
