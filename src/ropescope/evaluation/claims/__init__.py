"""What has been said of rotary pairs, each claim a test with a verdict."""
