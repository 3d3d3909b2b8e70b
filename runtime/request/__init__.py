"""What a caller asks for, checked against one bundle."""
