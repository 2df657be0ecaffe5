"""Pictures, codes and answers -> numbers with the protocol behind them. Imports only common/."""
