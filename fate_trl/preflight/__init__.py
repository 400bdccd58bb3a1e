"""What a recipe will run into, found before it runs: chat templates, lengths, memory."""
