"""What makes the hardware go and what looks at it: build, engines, traffic, observation, results, command line."""
