"""What tests and reports stand on: scripted policies, a check of suites, and the contract suite for plugin authors."""
