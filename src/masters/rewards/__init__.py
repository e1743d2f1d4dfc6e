"""What a response is worth: rule verifiers, distillation reward and advantages."""
