"""Problems with a known answer: joint distributions whose mutual information is known."""
