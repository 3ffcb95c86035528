"""The engines, a module each. Import the one you need: some bring torch with them."""
