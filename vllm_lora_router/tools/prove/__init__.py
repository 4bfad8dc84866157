"""Whether each category's adapter helps: the likelihood of reference answers under the base and every adapter."""
