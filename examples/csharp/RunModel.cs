// SPDX-License-Identifier: Apache-2.0
//
// Runs a model that holds LayerNormBackprop nodes from C#, with the kernel library:
//
//     RunModel LIBRARY MODEL
//
// Inputs may be of float or int64. One of float gets 0.01, 0.02, ..., one of int64 0, 1, 0, 1, ...; a length that the
// model leaves open is 2. The first elements of each output, which must be of float, are printed.

using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

internal static class RunModel
{
    private const int MostPrinted = 8;

    private static int Main(string[] arguments)
    {
        if (arguments.Length != 2)
        {
            Console.Error.WriteLine("usage: RunModel LIBRARY MODEL");
            return 2;
        }
        try
        {
            Run(arguments[0], arguments[1]);
            return 0;
        }
        catch (Exception error) when (error is OnnxRuntimeException || error is NotSupportedException)
        {
            Console.Error.WriteLine(error.Message);
            return 1;
        }
    }

    private static void Run(string library, string model)
    {
        using (var options = new SessionOptions())
        {
            options.RegisterCustomOpLibrary(library);
            using (var session = new InferenceSession(model, options))
            {
                List<NamedOnnxValue> inputs =
                    session.InputMetadata.Select(input => MakeInput(input.Key, input.Value)).ToList();
                using (IDisposableReadOnlyCollection<DisposableNamedOnnxValue> outputs = session.Run(inputs))
                {
                    foreach (DisposableNamedOnnxValue output in outputs)
                    {
                        Print(output.Name, output.AsTensor<float>());
                    }
                }
            }
        }
    }

    private static NamedOnnxValue MakeInput(string name, NodeMetadata input)
    {
        int[] shape = input.Dimensions.Select(length => length < 0 ? 2 : length).ToArray();
        int count = shape.Aggregate(1, (product, length) => product * length);
        IEnumerable<int> indices = Enumerable.Range(0, count);
        if (input.ElementType == typeof(float))
        {
            float[] values = indices.Select(index => 0.01f * (index + 1)).ToArray();
            return NamedOnnxValue.CreateFromTensor(name, new DenseTensor<float>(values, shape));
        }
        if (input.ElementType == typeof(long))
        {
            long[] values = indices.Select(index => index % 2L).ToArray();
            return NamedOnnxValue.CreateFromTensor(name, new DenseTensor<long>(values, shape));
        }
        throw new NotSupportedException($"Input {name} is of {input.ElementType}; it must be of float or int64.");
    }

    private static void Print(string name, Tensor<float> output)
    {
        IEnumerable<string> first =
            output.Take(MostPrinted).Select(value => value.ToString("R", CultureInfo.InvariantCulture));
        Console.WriteLine($"{name}: {string.Join(" ", first)}{(output.Length > MostPrinted ? " ..." : "")}");
    }
}
