"""What the configurations of other libraries say about a model, a file for each library."""
