"""Reading the model configurations of other libraries, one file per library."""
